"""From the trained towers to fresh answers: item vectors, versions of the index, and recommendations out of one."""
