"""How fast it is on this machine: `pogmdm bench`."""
