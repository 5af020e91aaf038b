"""Tables, figures and the one-page report that put the cells of a study side by side."""
