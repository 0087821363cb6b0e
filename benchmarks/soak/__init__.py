"""A long run of everything that goes wrong with clients: does memory grow, is every request answered?"""
