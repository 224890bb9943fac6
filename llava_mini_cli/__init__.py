"""LLaVA-Mini on the command line: batch understanding of videos and images, one vision token a frame.

Importing the package loads nothing heavy; the model classes live in `llava_mini_cli.model`.
"""

__version__ = "0.1.0"
