"""Groups of vectors and codes for them: k-means and its kin, product and residual quantizers."""
