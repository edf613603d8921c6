"""Common English words: they mean too much to stand for a new concept."""

_LIST = """
a actor alarm album alex alice an anchor and angel animal anime anna ant antique apple apron arch are armor arrow art
artist as ash ask at avocado axe baby backpack bacon bad badge badger bag ball balloon bamboo banana bandage banner bar
barn baroque barrel basket bat bath battery be beach bead bean bear beard beautiful beaver bed bee beer beetle bell
belt bench berry best bicycle big bike bird bison black blade blanket blazer block blossom blue blueprint boar boat bob
bolt bomb bone bonnet book boot boots bottle bounce bouquet bow bowl box boy bread brick bride bridge bright bring
broken broom brother brown brush bubble bucket buckle bud buffalo build bulb bull bullet bunny burning bus bush butter
butterfly button by cabin cabinet cable cactus cage cake calendar calf call camel camera canal canary candle candy cane
canoe canvas cap captain car card carpet carrot carry cart cartoon carving castle cat catch caterpillar cauldron cave
cereal chain chair chalk charlie chase cheap cheetah chef cherry chess chest chicken child chili chimney chocolate
church cigar circle city clay clean cliff climb cloak clock cloth cloud clown club coal coat cobra cobweb coconut
coffee coin cold collar colorful colourful comb come comet compass computer cone cook cookie cool copper coral cord
cork corn cosmic cottage cotton couch country cow cowboy coyote crab crane crate crawl crayon cream cricket crocodile
cross crow crown cry crystal cucumber cup curtain cushion cute cyberpunk dagger dance dancer dark dart david day dead
deck deer demon denim desert design desk devil diamond dice digital dinner dinosaur dirty disc dish dive diver dock
doctor dog doll dolphin dome donkey donut door dot dove dragon draw drawer drawing dream dress drill drink drive driver
drone drop drum duck dust eagle earring easel eat eel egg eight electric elegant elephant elevator elf emerald emma
empty engine envelope eye fabric face factory fairy falcon fall family fan fancy fantasy farmer fast father feather
fence fern ferret field fight figurine fire fireplace first fish five flag flame flamingo flask flat float floating
flower fluffy flute fly foal foam fog food for forest fork fossil fountain four fox frame free fridge friend frog from
frost frozen fruit full funny fur futuristic fuzzy game garden gate gazelle gear gecko gem geometric ghost giant gift
giraffe girl give glass glasses glove glow glowing glue go goat goblet goggles gold golden good goose gorilla gothic
grape grass gravel gray great green grey grill groom guard guitar gun hair hairy hammer hammock hamster hand happy
harbor harp hat hatch hawk hay head heart heavy hedgehog heel helmet hen hero heron hide high hill hippo hive hold
hollow home honey hood hook hop horn horse hose hot hotel house hug huge hunt hunter hut hyena ice icon icy idol igloo
impressionist in inflatable ink iron is island it its ivory jack jacket jade jaguar jam james jar jeep jelly jewel john
jolly judge juice jump jungle kangaroo keep kettle key keyboard kick king kitchen kite kitten kiwi kneel knife knight
knitted knot know koala lace ladder lady lake lamb lamp lantern laptop large last laugh lava lawn lazy lead leaf lean
leather lemon lens leopard letter lid lie light lighthouse like lime linen lion lip lipstick little live lizard llama
loaf lobster lock log lollipop long look loop loud love lovely low lucy lynx machine magic make man mango mansion map
marble march market mary mask mast mat match max meadow meal mechanical medal medieval melon melted men mermaid messy
metal metallic meteor michael microphone milk mill mine minimal mint mirror mist mitten model modern mole monk monkey
monster moon moose mosquito moss moth mother motor motorcycle mountain mouse mud muffin mug mushroom music nail napkin
nature necklace needle neon nest net new nice night nine ninja noir noodle nose notebook nurse nut oak oar ocean of oil
old olive on one onion opaque open or orange orb orchid ornate ostrich otter oven owl ox paddle paint painting palace
pale palm pan pancake panda panther pants paper parachute parcel park parrot pastel pastry patch path paul paw pea
peach peacock peanut pear pearl pebble pelican pen pencil penguin people pepper person pet petal peter phone photo
piano pickle picture pie pier pig pigeon pill pillar pillow pilot pin pine pink pipe pirate pitcher pixel pizza plaid
plain plane planet plank plant plastic plate platypus play plum plush plushie pocket pointed pole police polished pond
pony pool poppy porch portrait post poster pot potato pottery powder pretty priest prince princess pudding puffin pull
pump pumpkin puppet puppy purple purse push puzzle pyramid queen quiet quilt rabbit raccoon rack radio radish raft rail
rain rainbow rake ram rat raven raw read real red reindeer rest retro rex rhino ribbon rice rich ride ring river road
robe robot rock rocket rod roll roof room rooster root rope rose round royal rubber ruby rug ruler run rush rust rusty
sack sad saddle sail sailor salad salmon salt sam samurai sand sandal sandwich sarah satin sauce saucer sausage saw say
scarf scary school scissors scorpion screen screw scroll sculpture sea seal seat see seed sepia seven shadow shaggy
shark sharp shed sheep sheet shelf shell shield shine shiny ship shirt shoe shoes shop short shout shovel shower shrimp
sign silent silk silver simple sing singer sink sister sit six skate sketch sketchy ski skip skirt skull skunk sky
sleep sleepy slide slip slipper sloth slow small smell smile smoke smooth snack snail snake sneaker snore snow soap
sock soda sofa soft soil soldier solid soup spade sparrow spear special sphere spider spike spiky spin spiral sponge
spooky spoon spot spotted spray spring square squid squirrel stain stair stamp stand star stare statue steam steel stem
stick sticker sticky stone stool stop stork storm stove strange straw strawberry street stripe striped strong student
style suit suitcase summer sun sunglasses sunset super surfboard surreal swamp swan sweater sweet swim swing sword
syrup table tail take talk tall tank tape tea teacher teapot temple ten tent that the these thief think this those
thread three throne throw thumb ticket tie tiger tile tin tiny tire to toad toast toaster tom tomato tongue tool tooth
torch touch towel tower town toy track tractor trail train transparent travel tray treasure tree triangle trophy
tropical truck trumpet trunk try tub tube tulip tuna tunnel turn turnip turtle two ugly umbrella vacuum valley vampire
van vase vegetable veil velvet vest vintage violet violin vivid volcano wagon wait wake walk wall wallet walrus wand
want wardrobe warm warrior was wasp watch water watercolor wave wax wear weasel web wet whale wheel whip whisper
whistle white wide wig wild willow win window wine wing wink winter wire witch with wizard wolf woman women wonderful
wood wooden wool woolly work worker world worm wreath write yacht yarn yawn yellow young zebra zipper
"""

ORDINARY_WORDS = frozenset(_LIST.split())


def is_ordinary(word: str) -> bool:
    """Whether the base surely has its own idea of this word, so that a concept would have to fight it.

    Only common words are known here; a word that is not in the list may still mean something to the base.
    """
    return all(ORDINARY_WORDS & _forms(part) for part in word.lower().split())


def _forms(word: str) -> set[str]:
    """The word and what it may be a regular form of: dogs, boxes, ponies, standing, painted, striped."""
    forms = {word}
    for ending, replacements in (("ies", ("y",)), ("es", ("",)), ("s", ("",)), ("ing", ("", "e")), ("ed", ("", "e"))):
        if word.endswith(ending) and len(word) > len(ending) + 2:
            forms |= {word.removesuffix(ending) + replacement for replacement in replacements}
    return forms
