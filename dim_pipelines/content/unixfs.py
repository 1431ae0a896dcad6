"""The one door to files and folders: what `files` and `folders` offer, under one name."""

from dim_pipelines.content.files import add_bytes, add_file, file_blocks, file_size, read_bytes, read_file
from dim_pipelines.content.folders import add_folder, list_folder, read_folder, tree_blocks

__all__ = [
    "add_bytes",
    "add_file",
    "add_folder",
    "file_blocks",
    "file_size",
    "list_folder",
    "read_bytes",
    "read_file",
    "read_folder",
    "tree_blocks",
]
