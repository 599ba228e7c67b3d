"""What turns a model into a generator of text: sampling, stop strings, the loop over tokens."""
