"""The image prior: a filter bank and one-dimensional experts, two exchangeable parts."""
