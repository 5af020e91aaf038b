"""From predictions to accuracies, and from accuracies to statements with an uncertainty."""
