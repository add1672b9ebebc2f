"""From a request to the engine and back: prompts, parameters, answers."""
