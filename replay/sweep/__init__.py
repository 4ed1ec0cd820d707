"""`replay sweep`: many settings over one timeline, their figures in one table; `running.sweep` is the way in."""
