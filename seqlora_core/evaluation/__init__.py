"""Fidelity and forgetting of a bank's concepts, by the protocol of the paper's Appendix G."""
