"""What people look at: the terminal while a run trains, its report after. In: events, runs on disk. Out: text, HTML."""
