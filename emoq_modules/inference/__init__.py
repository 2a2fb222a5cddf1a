"""The trained system at work, and what is passed on of it.

The recognizer, its folder, ASR, voice activity, fetching and export. Here lives
nothing that trains.
"""
