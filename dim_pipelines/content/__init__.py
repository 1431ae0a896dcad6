"""Floor 2: content by CID: block stores, UnixFS files, manifests, tables and model packages.

A store knows blocks, pins and links only; files, manifests, tables and packages are functions over any
store, so all stores give the same CIDs by construction.
"""
