"""Models and features as ONNX graphs: conversion, fusion, parity, explanations."""
