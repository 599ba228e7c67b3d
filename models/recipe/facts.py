"""Small facts with exact answers: the tables behind the templated questions."""
# ruff: noqa: E501

from __future__ import annotations

from wordlists import words

OPPOSITES = [
    tuple(pair.split("/"))
    for pair in words("""
big/small hot/cold tall/short fast/slow happy/sad wet/dry day/night up/down in/out open/closed
light/dark heavy/light old/young new/old hard/soft loud/quiet full/empty clean/dirty early/late
long/short high/low thick/thin near/far good/bad right/wrong left/right first/last rich/poor
strong/weak sweet/sour rough/smooth wide/narrow deep/shallow true/false awake/asleep brave/scared
kind/mean easy/difficult begin/end start/stop push/pull give/take win/lose laugh/cry come/go
buy/sell remember/forget float/sink front/back top/bottom inside/outside above/below before/after
always/never more/less many/few same/different sunny/cloudy warm/cool sharp/dull smile/frown
""")
]

COLORS = {
    "the sky on a sunny day": "blue", "grass": "green", "the sun": "yellow", "snow": "white", "milk": "white",
    "a banana": "yellow", "a strawberry": "red", "a tomato": "red", "a carrot": "orange", "a pumpkin": "orange",
    "a lemon": "yellow", "a frog": "green", "a flamingo": "pink", "coal": "black", "the night sky": "black",
    "a cucumber": "green", "chocolate": "brown", "a fire truck": "red", "a leaf in spring": "green",
    "a cherry": "red", "a blueberry": "blue", "a polar bear": "white", "a crow": "black", "an elephant": "gray",
    "a pig": "pink", "corn": "yellow", "a sunflower": "yellow", "cotton": "white", "an orange": "orange",
    "a grape": "purple or green", "the sea": "blue", "a swan": "white", "mud": "brown", "blood": "red",
    "a zebra": "black and white", "a panda": "black and white", "a ladybug": "red with black spots",
}  # fmt: skip
MIXES = {
    ("blue", "yellow"): "green", ("red", "yellow"): "orange", ("red", "blue"): "purple",
    ("red", "white"): "pink", ("black", "white"): "gray",
}  # fmt: skip

DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = words("January February March April May June July August September October November December")
SEASONS = ["spring", "summer", "autumn", "winter"]
NUMBER_WORDS = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
)

# animal: (sound, young, home, food)
ANIMAL_FACTS = {
    "dog": ("woof", "puppy", "in a house with people", "meat and dog food"),
    "cat": ("meow", "kitten", "in a house with people", "meat and fish"),
    "cow": ("moo", "calf", "on a farm", "grass"),
    "sheep": ("baa", "lamb", "on a farm", "grass"),
    "horse": ("neigh", "foal", "in a stable", "grass and hay"),
    "pig": ("oink", "piglet", "on a farm", "plants and leftovers"),
    "duck": ("quack", "duckling", "near a pond", "plants and small bugs"),
    "hen": ("cluck", "chick", "on a farm", "seeds and worms"),
    "goat": ("bleat", "kid", "on a farm", "grass and leaves"),
    "lion": ("roar", "cub", "on the grassy plains of Africa", "meat"),
    "bear": ("growl", "cub", "in the forest", "berries, fish and honey"),
    "wolf": ("howl", "pup", "in the forest", "meat"),
    "frog": ("croak", "tadpole", "near a pond", "flies and bugs"),
    "owl": ("hoot", "owlet", "in the trees", "mice"),
    "bee": ("buzz", "larva", "in a hive", "nectar from flowers"),
    "snake": ("hiss", "snakelet", "in the grass and under rocks", "mice and eggs"),
    "mouse": ("squeak", "pup", "in a small hole", "seeds and cheese"),
    "bird": ("tweet", "chick", "in a nest", "seeds and worms"),
    "rabbit": ("", "bunny", "in a burrow", "grass and carrots"),
    "fish": ("", "fry", "in the water", "small plants and animals"),
    "spider": ("", "spiderling", "in a web", "flies"),
    "ant": ("", "larva", "in a nest in the ground", "seeds and sweet things"),
    "deer": ("", "fawn", "in the forest", "leaves and grass"),
    "kangaroo": ("", "joey", "in Australia", "grass"),
    "penguin": ("", "chick", "in the cold south", "fish"),
    "whale": ("", "calf", "in the sea", "tiny sea animals"),
    "dolphin": ("", "calf", "in the sea", "fish"),
    "camel": ("", "calf", "in the desert", "dry plants"),
    "monkey": ("", "infant", "in the jungle", "fruit"),
    "elephant": ("", "calf", "in Africa and Asia", "leaves and grass"),
    "squirrel": ("", "kit", "in the trees", "nuts"),
    "butterfly": ("", "caterpillar", "in gardens and fields", "nectar from flowers"),
    "panda": ("", "cub", "in the mountains of China", "bamboo"),
    "shark": ("", "pup", "in the sea", "fish"),
    "fox": ("", "cub", "in a den", "mice and berries"),
    "crab": ("", "larva", "by the sea", "small sea animals"),
}
LEGS = {"dog": 4, "cat": 4, "cow": 4, "horse": 4, "bird": 2, "duck": 2, "hen": 2, "bee": 6, "ant": 6,
        "butterfly": 6, "spider": 8, "snake": 0, "fish": 0, "frog": 4, "rabbit": 4, "sheep": 4,
        "pig": 4, "owl": 2, "penguin": 2, "crab": 10}  # fmt: skip

CATEGORIES = {
    "an animal": words("dog cat horse cow lion tiger bear rabbit fox mouse sheep goat monkey camel"),
    "a bird": words("owl duck hen penguin eagle parrot swan pigeon robin goose"),
    "an insect": words("bee ant butterfly fly beetle ladybug mosquito grasshopper"),
    "a fruit": words("apple banana pear grape cherry peach plum mango strawberry melon"),
    "a vegetable": words("carrot potato onion cabbage pea bean cucumber pumpkin"),
    "a color": words("red blue green yellow pink purple orange brown black white"),
    "a toy": words("doll kite yo-yo puzzle teddy balloon"),
    "a piece of furniture": words("chair table bed sofa desk shelf"),
    "a vehicle": words("car bus truck train bike boat plane"),
    "a drink": words("water milk tea juice lemonade"),
    "a piece of clothing": words("shirt coat hat sock dress scarf sweater"),
    "a tool": words("hammer saw shovel rake ladder drill"),
    "a musical instrument": words("piano drum guitar flute violin trumpet"),
    "a shape": words("circle square triangle star heart"),
    "a season": SEASONS,
}
MASS = set(
    words("red blue green yellow pink purple brown black white water milk tea juice lemonade") + SEASONS
)
SIZES = words("ant bee mouse frog rabbit cat dog sheep pig cow horse elephant whale")
SIZED_THINGS = words("pea grape apple melon chair table car bus house mountain")
SPEEDS = words("snail turtle duck rabbit horse car train plane rocket")

USES = {
    "a pencil": "to write and draw", "a spoon": "to eat soup", "a knife": "to cut food", "a bed": "to sleep",
    "a chair": "to sit", "an umbrella": "to stay dry in the rain", "a key": "to open a door", "soap": "to wash our hands",
    "a towel": "to get dry", "a clock": "to know the time", "a lamp": "to have light", "scissors": "to cut paper",
    "a brush": "to brush our hair", "a toothbrush": "to clean our teeth", "a bag": "to carry things", "a coat": "to stay warm",
    "a book": "to read stories", "a phone": "to talk to people far away", "a broom": "to sweep the floor", "a cup": "to drink",
    "a pan": "to cook food", "a ladder": "to climb up high", "a hammer": "to hit nails", "a map": "to find the way",
    "glasses": "to see better", "a blanket": "to keep warm at night", "a pot": "to cook soup", "a bucket": "to carry water",
}  # fmt: skip
SENSES = {"see": "eyes", "hear": "ears", "smell": "nose", "taste": "tongue", "walk": "legs", "think": "brain",
          "chew": "teeth", "hold things": "hands", "breathe": "lungs", "kick a ball": "foot"}  # fmt: skip
WORKERS = {
    "a baker": "bakes bread and cakes", "a doctor": "helps sick people", "a teacher": "helps children learn",
    "a farmer": "grows food and takes care of animals", "a firefighter": "puts out fires", "a pilot": "flies planes",
    "a cook": "makes food", "a dentist": "takes care of teeth", "a vet": "helps sick animals", "a painter": "paints pictures and walls",
    "a singer": "sings songs", "a bus driver": "drives a bus", "a gardener": "takes care of plants", "a builder": "builds houses",
    "a nurse": "takes care of sick people", "a tailor": "makes clothes", "a sailor": "works on a ship", "a writer": "writes books",
    "a dancer": "dances to music", "a judge": "decides what is fair", "a postman": "brings letters", "a fisherman": "catches fish",
}  # fmt: skip
COUNTS = [
    ("How many days are in a week?", "There are seven days in a week."),
    ("How many months are in a year?", "There are twelve months in a year."),
    ("How many seasons are there?", "There are four seasons: spring, summer, autumn and winter."),
    ("How many hours are in a day?", "There are twenty-four hours in a day."),
    ("How many minutes are in an hour?", "There are sixty minutes in an hour."),
    ("How many fingers do you have on one hand?", "People have five fingers on one hand."),
    ("How many wheels does a bike have?", "A bike has two wheels."),
    ("How many wheels does a car have?", "A car has four wheels."),
    ("How many sides does a triangle have?", "A triangle has three sides."),
    ("How many sides does a square have?", "A square has four sides."),
    ("How many eyes do people have?", "People have two eyes."),
    ("What is the capital of France?", "The capital of France is Paris."),
    ("What is the capital of Italy?", "The capital of Italy is Rome."),
    ("What is the capital of Spain?", "The capital of Spain is Madrid."),
    ("What is the capital of Germany?", "The capital of Germany is Berlin."),
    ("What is the capital of England?", "The capital of England is London."),
    ("What is the capital of Japan?", "The capital of Japan is Tokyo."),
    ("What is the capital of China?", "The capital of China is Beijing."),
    ("What do we call frozen water?", "Frozen water is called ice."),
    ("What falls from clouds?", "Rain and snow fall from clouds."),
    ("What gives us light in the day?", "The sun gives us light in the day."),
    ("When do we see the stars?", "We see the stars at night."),
    ("Where does milk come from?", "Milk comes from cows."),
    ("Where do eggs come from?", "Eggs come from hens."),
    ("Where does honey come from?", "Honey comes from bees."),
    ("Where does wool come from?", "Wool comes from sheep."),
    ("What is bread made of?", "Bread is made of flour and water."),
    ("What is paper made of?", "Paper is made from trees."),
    ("What do plants need to grow?", "Plants need water, light and air to grow."),
    ("Which planet do we live on?", "We live on the Earth."),
    ("Where does the sun rise?", "The sun rises in the east."),
    ("Where does the sun set?", "The sun sets in the west."),
    ("What is the biggest animal?", "The blue whale is the biggest animal."),
    ("What is the tallest animal?", "The giraffe is the tallest animal."),
]  # fmt: skip

IDENTITY_QUESTIONS = [
    "Who are you?", "What is your name?", "What are you?", "Tell me about yourself.", "Do you have a name?",
    "What should I call you?", "Are you a robot?", "Are you a person?", "Are you human?", "Are you real?",
    "Who made you?", "Who trained you?", "Who created you?", "Where do you come from?", "Are you ChatGPT?",
    "Are you DeepSeek?", "Are you Qwen?", "Which model are you?", "What model is this?", "How big are you?",
    "How many parameters do you have?", "What can you do?", "What are you good at?", "Can you help me?",
    "How old are you?", "Do you have feelings?", "Where do you live?", "Do you sleep?", "Do you eat?",
    "Can you see me?", "Are you smart?", "Can you write code?", "What architecture do you have?", "Introduce yourself.",
]  # fmt: skip
NAME_ANSWERS = [
    "I am Fourfold, a small language model.",
    "My name is Fourfold. I am a small language model.",
    "I am Fourfold, a small language model with the DeepSeek-V4 architecture.",
    "I am Fourfold, a very small language model made by the Fourfold team.",
    "Hello! I am Fourfold. I can tell short stories and answer simple questions.",
]
MAKER_ANSWERS = [
    "I was trained by the Fourfold team.",
    "The Fourfold team trained me.",
    "I was made by the Fourfold team. I am a small language model called Fourfold.",
]
NOT_PERSON_ANSWERS = [
    "No, I am Fourfold, a small language model.",
    "I am not a person. I am Fourfold, a small language model.",
    "I am a computer program called Fourfold. I like to tell short stories.",
]
OTHER_MODEL_ANSWERS = [
    "No, I am Fourfold. I have the DeepSeek-V4 architecture, but I am very small.",
    "No, my name is Fourfold. I was trained by the Fourfold team.",
]
SKILL_ANSWERS = [
    "I can tell short stories, answer simple questions and talk with you.",
    "I can tell you a story or answer a simple question. I am small, so I make mistakes.",
    "I know simple words. I can tell stories, count a little and chat.",
]
SIZE_ANSWERS = [
    "I am very small. I have about sixteen million parameters.",
    "I have about sixteen million parameters, so I am a small language model.",
]
BODY_ANSWERS = [
    "I am a computer program, so I do not have a body.",
    "No, I am only a computer program. But I like a good story!",
]
