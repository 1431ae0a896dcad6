"""DIM, the Decentralized Inference Machine: batch inference over many machines.

This file imports nothing, so that a floor of the house can be imported without the others (a node
never needs Dagster, a client never needs torch).
"""
