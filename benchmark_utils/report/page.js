// What benchopt's page of results loads from the network, besides plotly.

// Titles as objects: plotly.js 3 and later ignore those that are strings.
(() => {
  const react = Plotly.react;
  const asObject = (part) => {
    if (part && typeof part.title === 'string') {
      part.title = {text: part.title};
    }
  };
  Plotly.react = (div, data, layout, ...rest) => {
    [layout, layout?.xaxis, layout?.yaxis].forEach(asObject);
    return react(div, data, layout, ...rest);
  };
})();

// The part of Grid.js that the page uses: a table sorted by a click on the
// name of a column. Its class names are those that the export looks for.
window.gridjs = {
  html: (content) => ({html: content}),
  Grid: class {
    constructor({columns, data}) {
      this.columns = columns;
      this.rows = [...data];
      this.sorted = {index: null, ascending: true};
      this.table = document.createElement('table');
      this.table.className = 'gridjs-table';
    }
    on() {}
    render(element) {
      element.classList.add('gridjs-container');
      element.style.overflowX = 'auto';
      element.appendChild(this.table);
      this.forceRender();
    }
    forceRender() {
      this.table.innerHTML = '';
      const head = this.table.createTHead().insertRow();
      this.columns.forEach((column, index) => {
        if (column.hidden) return;
        const cell = document.createElement('th');
        cell.className = 'gridjs-th';
        cell.innerHTML = '<div class="gridjs-th-content"></div>';
        cell.firstChild.textContent = column.name;
        cell.onclick = () => this.sort(index);
        head.appendChild(cell);
      });
      const body = this.table.createTBody();
      this.rows.forEach((row) => {
        const line = body.insertRow();
        this.columns.forEach((column, index) => {
          if (column.hidden) return;
          const cell = line.insertCell();
          const content = column.formatter(row[index]);
          if (content && content.html !== undefined) {
            cell.innerHTML = content.html;
          } else {
            cell.textContent = content;
          }
        });
      });
    }
    sort(index) {
      const {index: before, ascending} = this.sorted;
      this.sorted = {index, ascending: index === before ? !ascending : true};
      const sign = this.sorted.ascending ? 1 : -1;
      const {compare} = this.columns[index].sort;
      this.rows.sort((a, b) => sign * compare(a[index], b[index]));
      this.forceRender();
    }
  },
};

// The hint for a page that could not load its scripts: this one has them.
window.addEventListener('load', () => {
  Object.values(window._plots.verdict || {}).forEach((plot) => {
    plot.title = plot.title.replace(/ No table here\?.*$/, '');
  });
});

// The animation of the brand, which stands still instead.
const still = {add: () => still};
window.anime = {timeline: () => still};
