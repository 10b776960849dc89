"""What `leeml demo` shows of each homework: a pure function `answer`, and `add_tab`, which puts it on the page."""
