"""The command line, the demo and job submission: what people touch.

The only package that reads settings files and talks to a terminal.
"""
