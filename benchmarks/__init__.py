"""Times convserve beside the engines that people use today, on the networks of the CS231n case studies."""

__all__: list[str] = []
