"""The surfaces of other SAE packages, served by the numerics of this one."""
