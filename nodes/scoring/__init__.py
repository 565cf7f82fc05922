"""How a sweep is scored: numbers first, then what follows from them, then how both are shown.

None of it knows a node.

=============  ============================================================================
``measures``   how near a picture is to the photograph and to the sentence
``scores``     the measures' values over eta, as text and as JSON
``recommend``  which eta follows from them
``chart``      both curves drawn, as in the paper's figure 9
=============  ============================================================================
"""
