"""Print the demo's scorecard as the Markdown tables of this folder's README.

Usage: python benchmarks/scorecard_table.py demo_output/scorecard.csv
"""

import sys

import pandas

COLUMNS = {
    "rmse": "RMSE of the mean",
    "crps": "fair CRPS",
    "spread_skill": "spread-skill",
    "anomaly_correlation": "anomaly correlation",
}


def tables(card: pandas.DataFrame) -> str:
    """Return one table for each region, lead times side by side."""
    parts = []
    for region, rows in card.groupby("region", sort=False):
        leads = sorted(rows["lead_time"].unique())
        head = " | ".join(COLUMNS.values())
        hours = " / ".join(str(lead) for lead in leads)
        parts.append(f"### {region}, at {hours} h (m)\n\n| system | {head} |")
        parts.append("|---" * (len(COLUMNS) + 1) + "|")
        for system, group in rows.groupby("system", sort=False):
            group = group.set_index("lead_time")
            cells = [_cell(group, name, leads) for name in COLUMNS]
            parts.append(f"| {system} | " + " | ".join(cells) + " |")
        parts.append("")
    return "\n".join(parts)


def _cell(group: pandas.DataFrame, name: str, leads: list[int]) -> str:
    digits = 1 if name in ("rmse", "crps") else 2
    values = [group[name].get(lead, float("nan")) for lead in leads]
    return " / ".join("-" if v != v else f"{v:.{digits}f}" for v in values)


if __name__ == "__main__":
    print(tables(pandas.read_csv(sys.argv[1])))
