"""The engine of a run: resumable stages in a folder, at once where they can be."""
