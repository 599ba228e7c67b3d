"""Words that prompts and templates draw from: simple, concrete, known to small children."""

from __future__ import annotations


def words(text: str) -> list[str]:
    return text.split()


ANIMALS = words("""
ant bat bear bee beetle bird bug bunny butterfly camel cat caterpillar chick chicken cow crab deer
dog dolphin donkey dragonfly duck duckling eagle elephant fish fox frog giraffe goat goose hamster
hedgehog hen hippo horse kangaroo kitten koala ladybug lamb lion lizard monkey moose mouse otter owl
panda parrot peacock penguin pig pigeon pony puppy rabbit raccoon rat seal shark sheep snail snake
spider squirrel swan tiger toad turkey turtle whale wolf worm zebra
""")

THINGS = words("""
apple bag ball balloon banana basket bath bed bell berry bike blanket block boat book boot bottle
bowl box branch bread brick bridge broom brush bubble bucket bus button cake camera candle candy cap
car card carrot castle chair cheese cherry clock cloud coat coin cookie corn cottage crayon crown cup
desk doll door dream dress drum egg feather fence field fire flag floor flower flute forest fork fort
garden gate gift glass glove grape grass guitar hammer hat hill honey hoop house ice jacket jam jar
jelly juice key kitchen kite ladder lake lamp leaf lemon letter lunch map marble mask medal melon milk
mirror mitten moon mountain mud muffin mushroom nail neck necklace needle nest net noise note nut
orange oven page paint pan pancake paper park path peach pear pebble pen pencil piano pickle picnic
picture pie pillow pizza plane plant plate pocket pond popcorn pot potato puddle pumpkin puzzle quilt
rain rainbow ring river road robot rock roof room rope rose rug sail salad sand sandwich scarf school
seed shadow shell ship shirt shoe shop shovel sink sky sled slide smoke snow snowman soap sock song
soup spoon spring stage star statue step stick stone store storm story street string suit sun sweater
swing table tail tea teddy tent ticket tomato tooth towel tower toy trail train treasure tree truck
trumpet tunnel umbrella van vase vest violin wagon wall watch water wheel whistle wind window wing
wish wood wool yard
""")

PEOPLE = words("""
artist aunt baby baker boy brother builder captain clown cook cousin dad dancer dentist doctor driver
farmer father firefighter fisherman friend girl grandfather grandma grandmother grandpa king knight
mom mother nurse painter pilot pirate prince princess queen sailor shopkeeper singer sister soldier
teacher twin uncle vet wizard
""")

VERBS = words("""
add answer ask bake bend blow borrow bounce bow break breathe bring brush build bury buy call carry
catch change chase choose clap clean climb close collect color cook copy count cover crawl cross cry
cut dance decide dig dive drag draw dream drink drive drop dry eat explain explore fall feed feel
fight fill find finish fix float fly fold follow forget forgive give glow grab grow guess hang help
hide hold hop hug hunt hurry imagine invite jump keep kick kiss knit knock laugh lead learn leave lend
lick lift listen look lose love make march measure melt mix move nap notice open pack paint pay peek
pick plan plant play point polish pour practice pretend promise protect pull push put race reach read
remember repair rescue rest return ride ring roar roll row rub run sail save scream search sell send
sew shake share shine shout show sing sit skip sleep slide slip smell smile sneeze sniff sort spin
splash spread squeeze stack stand stop stretch study surprise sweep swim swing talk taste teach tell
thank think throw tickle tie touch trade travel trip trust try turn visit wait wake walk wash watch
water wave wear whisper whistle win wish wonder work wrap write yawn
""")

ACTIVITIES = words("""
bake build clap climb cook count dance dig dive draw explore fish float fly hike hop jump knit laugh
learn march paint plant play race read relax rest ride row run sail sew sing skip sleep smile spell
study swim swing share travel walk whistle win write
""")

PETS = words(
    "bird bunny cat chick dog duck fish frog goat goldfish hamster horse "
    "kitten lamb lizard mouse parrot pig pony puppy rabbit snail turtle"
)

ADJECTIVES = words("""
angry big black blue bored bossy brave bright broken brown busy calm careful careless cheerful chilly
clean clever clumsy cold colorful cozy crazy curious cute dark deep delicious different dirty dry dull
dusty early easy empty excited fair fancy fast fat fluffy free fresh friendly full funny furry gentle
giant glad golden good grateful gray greedy green grumpy happy hard healthy heavy helpful high honest
hot huge hungry icy impatient important jealous jolly kind large late lazy light little lonely long
lost loud lovely low lucky magic mean messy muddy naughty neat nervous new nice noisy old orange
patient perfect pink plain playful polite poor popular pretty proud purple quick quiet rainy rare red
rich ripe rough round rude sad safe salty scared scary secret selfish shallow sharp shiny short shy
sick silent silly silver simple sleepy slippery slow small smart smooth snowy soft sorry sour special
spicy spotted square stale steep sticky strange strong stubborn sunny surprised sweet tall tame tasty
thick thin thirsty tidy tiny tired tough true ugly unusual upset useful warm weak wet white wild windy
wise wonderful wooden worried yellow young yummy
""")

CREATURE_ADJECTIVES = words("""
angry big black bored brave brown busy calm careful cheerful clever clumsy cold curious cute fast fat
fluffy friendly funny furry gentle giant golden gray greedy green grumpy happy helpful huge hungry
jealous kind lazy little lonely lost loud lucky muddy naughty nervous noisy old orange patient pink
playful polite proud purple quick quiet red sad scared shy silly sleepy slow small smart spotted strange
stubborn sweet tall tame thin thirsty tiny tired white wild wise yellow young
""")

JOBS = words("""
artist baker builder captain clown cook dancer dentist doctor driver farmer firefighter fisherman king
nurse painter pilot queen sailor singer soldier teacher vet
""")

NAMES = words("""
Adam Aisha Ali Alice Amir Amy Andy Anna Arjun Ava Bella Ben Beth Billy Bob Carla Carlos Charlie Chen
Chloe Clara Daisy Dan David Dina Ella Ellie Emil Emma Eric Eva Fatima Felix Finn Flora Fred Gina Grace
Gus Hana Hannah Harry Helen Henry Hugo Ida Ivan Ivy Jack Jake Jane Jay Jen Joe John Josh Julia Kai
Karim Kate Katie Ken Kim Kofi Lara Layla Lena Leo Lily Lin Lisa Liz Lola Lucas Lucy Luis Luna Lupe
Maria Mark Mary Matt Max Maya Meg Mei Mia Mike Milo Molly Nadia Nancy Nick Nina Noah Nora Olga Oliver
Omar Oscar Otto Paul Penny Peter Pia Polly Ravi Rita Rosa Rose Roy Ruby Sally Sam Sara Sasha Sofia
Sophie Sue Susie Tara Ted Tess Theo Tim Tina Toby Tom Tony Uma Vera Victor Wendy Will Yara Yuki Zara
Zoe
""")

PLACES = words("""
attic bakery barn beach bedroom bridge bus camp castle cave church circus city classroom corner cottage
desert factory fair farm field forest garden hill hospital island jungle kitchen lake library market
meadow mountain museum ocean park playground pond pool restaurant river school shop station stream
street theater town valley village woods yard zoo
""")

FEELINGS = words("""
sad happy angry tired bored lonely scared worried nervous excited proud sick hungry cold confused
jealous grumpy shy sorry sleepy upset
""")

TOPICS = [
    topic.strip()
    for topic in """
the sun|the moon|stars|rain|snow|the wind|clouds|thunder|rainbows|rivers|the sea|lakes|mountains|deserts
islands|volcanoes|trees|flowers|grass|seeds|leaves|roots|mushrooms|bees|ants|spiders|butterflies|snails
worms|birds|owls|penguins|ducks|fish|sharks|whales|dolphins|frogs|snakes|turtles|cats|dogs|cows|horses
sheep|pigs|goats|chickens|rabbits|mice|lions|tigers|bears|wolves|foxes|monkeys|elephants|giraffes|camels
zebras|kangaroos|dinosaurs|dragons|bread|milk|apples|bananas|oranges|lemons|eggs|cheese|butter|honey|sugar
salt|rice|soup|cake|ice cream|chocolate|pizza|tea|water|ice|fire|smoke|light|sound|heat|air|shadows|colors
sleep|dreams|teeth|bones|the heart|the brain|the eyes|ears|the nose|hands|feet|skin|hair|germs|school
books|libraries|music|drums|the piano|songs|dancing|painting|paper|pencils|glass|wood|stone|metal|plastic
wool|cotton|clothes|shoes|hats|umbrellas|houses|doors|windows|roofs|bridges|roads|cars|buses|trains|boats
ships|planes|bicycles|rockets|wheels|clocks|money|shops|markets|farms|gardens|parks|zoos|hospitals
doctors|nurses|teachers|bakers|firefighters|farmers|police officers|pilots|cooks|families|babies
grandparents|friends|games|puzzles|toys|balls|kites|birthdays|gifts|holidays|picnics|winter|spring|summer
autumn|morning|night|weeks|months|years|numbers|letters|words|stories|maps|the Earth|the sky|planets|space
the weather|seasons|food|fruit|vegetables|breakfast|lunch|dinner|the kitchen|beds|chairs|tables|lamps|keys
phones|computers|robots|cameras|television|the internet|batteries|soap|brushes|towels|baths|beaches|sand
shells|forests|caves|nests|eggs in a nest|shadows at noon|sharing|saying sorry|telling the truth|being kind
being brave|making friends|helping at home|losing a game|trying again|brushing teeth|washing hands
""".replace("\n", "|").split("|")
    if topic.strip()
]
