import pytest

from loopwright.data.scaffold.names import clean, clean_names


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("Zähler", "Zaehler"),
        ("Za\u0308hler", "Zaehler"),
        ("Straße", "Strasse"),
        ("GRÖSSE in m²", "GROeSSE_in_m2"),
        ("Ærø", "Aeroe"),
        ("Årstal", "Aarstal"),
        ("prénom", "prenom"),
        ("número_cliente", "numero_cliente"),
        ("łódź", "lodz"),
        ("naïve café-№", "naive_cafe_No"),
        ("ｆｕｌｌ", "full"),
        ("2nd", "c_2nd"),
        ("class", "class_"),
        ("Возраст (лет)", "Vozrast_let"),
        ("Щука", "Shchuka"),
        ("Київ", "Kiyiv"),
        ("Ђорђе", "Djordje"),
        ("Βάρος", "Varos"),
        ("金额", ""),
        ("%", ""),
    ],
)
def test_letters_are_written_in_ascii(written: str, name: str) -> None:
    assert clean(written) == name


def test_names_that_become_alike_stay_two_columns() -> None:
    notes: list[str] = []
    names = clean_names(["Zähler", "Zaehler", "zaehler", "счётчик", "金额"], notes)
    assert names == ["Zaehler", "Zaehler_2", "zaehler_3", "schetchik", "column_5"]
    assert notes[0] == "column 'Zähler' is called 'Zaehler' here"
