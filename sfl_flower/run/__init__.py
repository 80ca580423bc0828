"""Running a method on a task: in this process, on Ray, or as Flower's apps."""
