"""The systems that CL-EPIDTN is compared with: counting, factorising and trained ones; import the modules directly."""
