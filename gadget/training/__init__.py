"""Images in, a prior out: `pogmdm train`, and `pogmdm inspect` to look at it."""
