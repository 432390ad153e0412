"""A simulated scan as an ISMRMRD file: `pogmdm phantom`."""
