"""Measure fidelity and forgetting of a bank's concepts (the protocol of the paper's Appendix G), and interference."""
