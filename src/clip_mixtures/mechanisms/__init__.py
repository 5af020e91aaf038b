"""What goes on inside a trained model: embeddings, representations, features and circuits."""
