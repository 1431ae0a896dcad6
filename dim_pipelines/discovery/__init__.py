"""Floor 3: who is there: signed records of nodes, the names they stand under, and what was concluded from them."""
