"""What Keras layers share whatever framework is under them: configs, saving, callbacks."""
