"""The ``emoq`` program, a module for each of its commands.

They parse, print and draw. Here lives nothing that another
program would import.
"""
