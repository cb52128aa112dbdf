"""How good policies are, judged by a GPM: which wins against which, and whether they chase each other in a circle."""
