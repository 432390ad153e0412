"""Pictures and pages about a reconstruction."""
