"""Messages in, frames out: the header, what each readout is for, and when an image has all its lines."""
