// Asks a ClickHouse endpoint the way Grafana's data source does: clickhouse-go through database/sql, over HTTP,
// with gzip. One JSON object a line on standard input, one on standard output:
//
//	{"sql": "SELECT 1", "cancel_after_ms": 0} → {"columns": [...], "types": [...], "rows": [[...]], ...}
package main

import (
	"bufio"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/big"
	"net"
	"os"
	"reflect"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
)

type question struct {
	SQL           string `json:"sql"`
	CancelAfterMS int    `json:"cancel_after_ms"`
}

type answer struct {
	Columns []string `json:"columns"`
	Types   []string `json:"types"`
	Rows    [][]any  `json:"rows"`
	Error   string   `json:"error"`
	Code    int32    `json:"code"`
	Seconds float64  `json:"seconds"`
}

func main() {
	address := flag.String("address", "127.0.0.1:8123", "host and port of the HTTP interface")
	database := flag.String("database", "default", "database")
	user := flag.String("user", "default", "user")
	password := flag.String("password", "", "password")
	inBlocks := flag.Bool("blocks", false, "ClickHouse's own compression instead of gzip")
	flag.Parse()
	method := clickhouse.CompressionGZIP
	if *inBlocks {
		method = clickhouse.CompressionLZ4
	}
	db := clickhouse.OpenDB(&clickhouse.Options{
		Addr:        []string{*address},
		Auth:        clickhouse.Auth{Database: *database, Username: *user, Password: *password},
		Protocol:    clickhouse.HTTP,
		Compression: &clickhouse.Compression{Method: method},
		DialTimeout: 10 * time.Second,
		ReadTimeout: 60 * time.Second,
	})
	defer db.Close()
	out := json.NewEncoder(os.Stdout)
	if err := db.PingContext(context.Background()); err != nil {
		out.Encode(failed(answer{}, err))
		os.Exit(1)
	}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var asked question
		if err := json.Unmarshal(lines.Bytes(), &asked); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		out.Encode(ask(db, asked))
	}
}

func ask(db *sql.DB, asked question) answer {
	began := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	if asked.CancelAfterMS > 0 {
		time.AfterFunc(time.Duration(asked.CancelAfterMS)*time.Millisecond, cancel)
	}
	got, err := fetch(ctx, db, asked.SQL)
	if err != nil {
		got = failed(got, err)
	}
	got.Seconds = time.Since(began).Seconds()
	return got
}

func fetch(ctx context.Context, db *sql.DB, text string) (answer, error) {
	got := answer{Rows: [][]any{}}
	rows, err := db.QueryContext(ctx, text)
	if err != nil {
		return got, err
	}
	defer rows.Close()
	if got.Columns, err = rows.Columns(); err != nil {
		return got, err
	}
	types, err := rows.ColumnTypes()
	if err != nil {
		return got, err
	}
	for _, each := range types {
		got.Types = append(got.Types, each.DatabaseTypeName())
	}
	for rows.Next() {
		values := make([]any, len(types))
		for index, each := range types {
			values[index] = reflect.New(each.ScanType()).Interface()
		}
		if err := rows.Scan(values...); err != nil {
			return got, err
		}
		for index := range values {
			values[index] = shown(reflect.ValueOf(values[index]).Elem())
		}
		got.Rows = append(got.Rows, values)
	}
	return got, rows.Err()
}

// A value as JSON: times and addresses as text, 64-bit numbers as text since JSON's are floats.
func shown(value reflect.Value) any {
	if value.Kind() == reflect.Pointer {
		if value.IsNil() {
			return nil
		}
		return shown(value.Elem())
	}
	switch plain := value.Interface().(type) {
	case time.Time:
		return plain.UTC().Format("2006-01-02 15:04:05.000000")
	case net.IP:
		return plain.String()
	case big.Int:
		return plain.String()
	case fmt.Stringer:
		return plain.String()
	case int64, uint64:
		return fmt.Sprint(plain)
	case []uint64, []uint32:
		return fmt.Sprint(plain)
	default:
		return plain
	}
}

func failed(got answer, err error) answer {
	got.Error = err.Error()
	var exception *clickhouse.Exception
	if errors.As(err, &exception) {
		got.Code = exception.Code
	}
	return got
}
