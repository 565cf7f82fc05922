// Builds a workflow on the canvas from the description that workflows.py makes.
// Columns go from left to right, a frame around each run of columns that shares a title.
async ({ id, name, packs, nodes, links, columns, form, box }) => {
  const GAP = { x: 30, y: 56, frame: 15, title: LiteGraph.NODE_TITLE_HEIGHT }
  // What a user is to touch stands out.
  const TOUCH = LGraphCanvas.node_colors.green
  const slot = (node, kind, name) => {
    const index = node[kind].findIndex((one) => one.name === name)
    if (index < 0) throw new Error(`${node.type} has no '${name}' in ${kind}`)
    return index
  }

  // One node of all, as the editor's "Convert to subgraph" makes it and its library keeps it.
  const boxed = (made, { inputs, outputs, outside, category, description, aliases }) => {
    for (const index of outside) app.graph.remove(made[index])
    const within = app.graph._nodes.concat(app.graph._groups)
    const { subgraph, node } = app.graph.convertToSubgraph(new Set(within))
    const inner = (index) => subgraph.getNodeById(made[index].id)
    for (const [label, targets] of inputs) {
      const ends = targets.map(([index, input]) => [inner(index), slot(inner(index), 'inputs', input)])
      const input = subgraph.addInput(label, ends[0][0].inputs[ends[0][1]].type)
      for (const [target, place] of ends) input.connect(target.inputs[place], target)
    }
    for (const [label, [index, output]] of outputs) {
      const source = inner(index)
      const from = source.outputs[slot(source, 'outputs', output)]
      subgraph.addOutput(label, from.type).connect(from, source)
    }
    // The editor also shows texts and seeds of its own choice.
    node.properties.proxyWidgets = node.properties.proxyWidgets.filter(([id]) => id === '-1')
    const least = node.computeSize()
    node.setSize([Math.max(least[0], 400), least[1] + 120])  // room for the texts
    const { nodes, subgraphs } = app.canvas._serializeItems([node])
    Object.assign(subgraphs[0], { name, category, description })
    nodes[0].title = name
    return {
      id, revision: 0, last_node_id: node.id, last_link_id: 0, nodes, links: [],
      definitions: { subgraphs },
      extra: { BlueprintDescription: description, BlueprintSearchAliases: aliases }, version: 0.4,
    }
  }

  app.graph.clear()
  app.graph.id = id
  const made = nodes.map(({ type, size, widgets, models, title }) => {
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
    if (title) Object.assign(node, { title, color: TOUCH.color, bgcolor: TOUCH.bgcolor })
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
  if (box) return JSON.stringify(boxed(made, box), null, 2)

  // What the front end's own export writes; without a view it shows all of it when opened.
  const { workflow } = await app.graphToPrompt()
  delete workflow.extra?.ds
  if (form) {
    // Newer front ends have texts for ids on the canvas, and numbers in the file.
    const exported = (index) => workflow.nodes.find((one) => one.id == made[index].id)
    const inputs = form.inputs.map(([label, index, widget]) => {
      // The export leaves out inputs that nothing is wired to, and with them what they are called.
      const input = made[index].serialize().inputs.find((one) => one.name === widget)
      exported(index).inputs.push({ ...input, label })
      return [exported(index).id, widget]
    })
    const outputs = form.outputs.map((index) => exported(index).id)
    Object.assign(workflow.extra, { linearMode: true, linearData: { inputs, outputs } })
  }
  return JSON.stringify(workflow, null, 2)
}
