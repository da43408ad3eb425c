"""`_kernel.c` through ctypes, which releases the GIL."""
