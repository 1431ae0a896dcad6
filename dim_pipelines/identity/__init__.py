"""Floor 2: who somebody is: keys, detached signatures, grants, and whom this home trusts."""
