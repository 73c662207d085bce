class Safety:
    @classmethod
    def from_options(cls, options):
        return cls()

    async def check_prompts(self, plan):
        pass
