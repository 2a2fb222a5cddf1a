"""How the project becomes a contribution to speechbrain/speechbrain."""
