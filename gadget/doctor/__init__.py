"""What is installed, here or on a running Gadgetron, and whether it works: `pogmdm doctor`."""
