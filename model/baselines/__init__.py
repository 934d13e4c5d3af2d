"""The systems that CL-EPIDTN is compared with: counted, factorised and trained ones; import the modules directly."""
