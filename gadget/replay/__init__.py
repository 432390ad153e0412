"""The other end of the wire: a server's part for `pogmdm run`, a client's part for `pogmdm doctor --server`."""
