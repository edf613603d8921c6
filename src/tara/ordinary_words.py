"""A few hundred English words that mean too much to stand for a new concept."""

_LISTS = """
a an the and or of in on at to from with by for as is are was be this that these those it its one two three four five
six seven eight nine ten first last new old big small large little long short tall high low good bad best great nice
red green blue yellow black white brown grey gray pink purple orange gold golden silver dark light bright colorful
animal bear bee bird bull bunny butterfly camel cat chicken cow crab deer dinosaur dog dolphin donkey dragon duck eagle
elephant fish fox frog giraffe goat goose hamster hen horse kitten lion lizard monkey mouse owl ox panda parrot
penguin pet pig pony puppy rabbit rat rooster shark sheep snake spider squirrel swan tiger turtle whale wolf zebra
actor artist baby boy brother child doctor face family father friend girl hero king knight lady man men mother people
person prince princess queen robot sister soldier teacher woman women
apple backpack bag ball balloon banana basket bed bell belt bench bicycle bike boat book boot boots bottle bowl box
bread bridge brush bus cake camera candle cap car card castle chair church clock cloud coat coffee computer cookie cup
desk dish doll door dress drum egg engine eye fire flag flower food fork fruit game garden gift glass glasses guitar
gun hair hand hat head heart helmet hill home house jacket jar jeep key kite knife lamp leaf letter machine map mask
mirror moon motorcycle mountain mug music painting pan paper pen pencil phone photo piano picture pie pizza plane
plant plate pot radio ring road rock rocket rose sea shell ship shirt shoe shoes sign skirt sky snow sofa spoon star
stone street sun sweater sword table teapot tent tie tower town toy train tree truck umbrella van vase violin wall
watch water wheel window wing wood world
anime art cartoon city country day design drawing forest kitchen nature night park portrait river room school sketch
style summer winter beach field grass lake ocean island sand
beautiful big cheap clean cold cool cute fast fluffy free full funny happy hot lovely magic modern open real rich sad
simple slow soft special strange strong super sweet warm wild wonderful young
ask bring call come cook cry dance draw drink drive eat fall fly give go jump keep know laugh like live look love make
paint play read ride run say see sing sit sleep smile stand stop swim take talk think try turn walk want work write
alex alice anna bob charlie david emma jack james john lucy mary max michael paul peter rex sam sarah tom
"""

ORDINARY_WORDS = frozenset(_LISTS.split())


def is_ordinary(word: str) -> bool:
    """Whether the base surely has its own idea of this word, so that a concept would have to fight it.

    Only common words are known here; a word that is not in the list may still mean something to the base.
    """
    return all(part in ORDINARY_WORDS for part in word.lower().split())
