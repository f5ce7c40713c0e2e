"""From images to a task: the objective, the loop and its state, the phases of a method."""
