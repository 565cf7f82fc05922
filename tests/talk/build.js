// Builds a workflow on the canvas from the description that workflows.py makes.
// Columns go from left to right, a frame around each run of columns that shares a title.
async ({ id, packs, nodes, links, columns }) => {
  const GAP = { x: 60, y: 30, frame: 20, title: LiteGraph.NODE_TITLE_HEIGHT }
  const slot = (node, kind, name) => {
    const index = node[kind].findIndex((one) => one.name === name)
    if (index < 0) throw new Error(`${node.type} has no '${name}' in ${kind}`)
    return index
  }

  app.graph.clear()
  app.graph.id = id
  const made = nodes.map(({ type, size, widgets, models }) => {
    const node = LiteGraph.createNode(type)
    if (!node) throw new Error(`this host has no node ${type}`)
    app.graph.add(node)
    for (const [name, value] of Object.entries(widgets)) {
      const widget = node.widgets?.find((one) => one.name === name)
      if (!widget) throw new Error(`${type} has no widget '${name}'`)
      widget.value = value
    }
    const from = node.constructor.nodeData?.python_module
    if (from) Object.assign(node.properties, from.startsWith('custom_nodes') ? packs.ours : packs.core)
    if (models.length) node.properties.models = models
    const least = node.computeSize()
    node.setSize([Math.max(least[0], size[0]), Math.max(least[1], size[1])])
    return node
  })
  for (const [from, output, to, input] of links) {
    const link = made[from].connect(
      slot(made[from], 'outputs', output), made[to], slot(made[to], 'inputs', input))
    if (!link) throw new Error(`${output} of ${made[from].type} does not fit ${input} of ${made[to].type}`)
  }

  const frames = []
  let x = 0
  for (const { title, members } of columns) {
    const before = frames.at(-1)
    if (before && before.title !== title) x += 2 * GAP.frame
    let y = 0
    let width = 0
    for (const index of members) {
      const node = made[index]
      y += GAP.title
      node.pos = [x, y]
      y += node.size[1] + GAP.y
      width = Math.max(width, node.size[0])
    }
    const frame = before?.title === title ? before : { title, left: x, right: x, bottom: 0 }
    if (frame !== before) frames.push(frame)
    frame.right = x + width
    frame.bottom = Math.max(frame.bottom, y - GAP.y)
    x += width + GAP.x
  }
  for (const { title, left, right, bottom } of frames) {
    const group = new LGraphGroup(title)
    group.pos = [left - GAP.frame, -GAP.title - GAP.frame]
    group.size = [right - left + 2 * GAP.frame, bottom + GAP.title + 2 * GAP.frame]
    app.graph.add(group)
  }

  // What the front end's own export writes; without a view it shows all of it when opened.
  const { workflow } = await app.graphToPrompt()
  delete workflow.extra?.ds
  return JSON.stringify(workflow, null, 2)
}
