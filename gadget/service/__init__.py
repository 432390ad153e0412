"""The gadget as a resident service: `pogmdm serve`, its clients and its workers."""
